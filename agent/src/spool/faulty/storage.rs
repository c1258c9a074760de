//! The disk as the spool has it: a folder with names, files that grow at their end, and syncs.

use std::io;

use super::{Faulty, On, WRITE, fail};
use crate::spool::storage::{Append, Lock, LockError, Storage};

impl Storage for Faulty {
    fn lock(&self, _: &str) -> Result<Lock, LockError> {
        let mut disk = self.disk();
        if disk.life != self.life {
            return Err(LockError::Io(io::Error::other("the machine is off")));
        }
        if std::mem::replace(&mut disk.locked, true) {
            return Err(LockError::Held(Some(1)));
        }
        Ok(Lock::new(Unlock(self.clone())))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let disk = self.disk();
        let len = |id: &usize| disk.files.get(*id).map_or(0, |file| file.now.len() as u64);
        Ok(disk.names.iter().map(|(name, id)| (name.clone(), len(id))).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.disk().reads += 1;
        self.bytes(name).ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Append>> {
        Ok(Box::new(Handle { disk: self.clone(), file: self.make(name)? }))
    }

    fn cut(&self, name: &str, len: u64) -> io::Result<Box<dyn Append>> {
        let id = *self.disk().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        {
            let (mut disk, fault) = self.operation("cut", On::Name(name))?;
            fail(fault)?;
            if let Some(file) = disk.files.get_mut(id) {
                file.set_len(usize::try_from(len).map_err(io::Error::other)?);
            }
        }
        self.sync(id)?;
        Ok(Box::new(Handle { disk: self.clone(), file: id }))
    }

    fn preallocate(&self, name: &str, len: u64) -> io::Result<()> {
        let id = self.make(name)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.write(WRITE, id, &vec![0; len])
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change_names("remove", name, |names| names.remove(name).map(drop))
    }

    fn exposure(&self, name: &str) -> io::Result<Option<String>> {
        self.disk().names.get(name).map(|_| None).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change_names("rename to", to, |names| {
            let id = names.remove(from)?;
            names.insert(to.to_owned(), id);
            Some(())
        })
    }

    fn sync_folder(&self) -> io::Result<()> {
        let (mut disk, fault) = self.operation("sync", On::Name(""))?;
        fail(fault)?;
        disk.unsynced_names.clear();
        disk.synced_names = disk.names.clone();
        Ok(())
    }
}

struct Handle {
    disk: Faulty,
    file: usize,
}

impl Append for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(WRITE, self.file, bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.disk.sync(self.file)
    }

    fn make_room(&mut self, len: usize) -> io::Result<()> {
        self.disk.write("make room in", self.file, &vec![0; len])
    }

    fn give_room_back(&mut self) -> io::Result<()> {
        let (mut disk, fault) = self.disk.operation("give room back of", On::File(self.file))?;
        fail(fault)?;
        if let Some(file) = disk.files.get_mut(self.file) {
            file.set_len(file.at);
        }
        Ok(())
    }
}

struct Unlock(Faulty);

impl Drop for Unlock {
    fn drop(&mut self) {
        let mut disk = self.0.disk();
        if disk.life == self.0.life {
            disk.locked = false;
        }
    }
}
