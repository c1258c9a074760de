//! A goal: a number that a run measured comes in, and by how much it is met or missed goes out, in words.

/// One number that is to be reached.
#[derive(Debug)]
pub struct Goal {
    pub title: &'static str,
    pub unit: &'static str,
    /// Whether it is to be no more than the goal, or no less.
    pub at_most: bool,
    pub goal: f64,
    pub stretch: Option<f64>,
    pub measured: Option<f64>,
    /// What the profile says, and what would mend it, should it be missed.
    pub why: &'static str,
}

impl Goal {
    pub fn is_met(&self) -> Option<bool> {
        let told = self.measured.filter(|measured| *measured >= 0.0);
        told.map(|measured| if self.at_most { measured <= self.goal } else { measured >= self.goal })
    }

    /// In words: met, or missed by how much.
    pub fn verdict(&self) -> String {
        let Some(measured) = self.measured else { return "not measured".into() };
        if measured < 0.0 {
            return "cannot be told: it took longer without Weir".into();
        }
        let off = if self.at_most { measured / self.goal } else { self.goal / measured };
        let stretched = self
            .stretch
            .is_some_and(|stretch| if self.at_most { measured <= stretch } else { measured >= stretch });
        match (off <= 1.0, stretched) {
            (true, true) => "met, and the stretch goal".into(),
            (true, false) => "met".into(),
            (false, _) => format!("missed: {off:.2} x off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(at_most: bool, measured: Option<f64>) -> Goal {
        Goal {
            title: "",
            unit: "",
            at_most,
            goal: 100.0,
            stretch: Some(if at_most { 50.0 } else { 200.0 }),
            measured,
            why: "",
        }
    }

    #[test]
    fn a_goal_is_met_missed_by_how_much_or_not_measured() {
        for (at_most, measured, met, words) in [
            (true, Some(100.0), Some(true), "met"),
            (true, Some(50.0), Some(true), "met, and the stretch goal"),
            (true, Some(150.0), Some(false), "missed: 1.50 x off"),
            (false, Some(200.0), Some(true), "met, and the stretch goal"),
            (false, Some(50.0), Some(false), "missed: 2.00 x off"),
            (false, None, None, "not measured"),
            (true, Some(-5.0), None, "cannot be told: it took longer without Weir"),
        ] {
            let goal = goal(at_most, measured);
            assert_eq!((goal.is_met(), goal.verdict().as_str()), (met, words));
        }
    }
}
