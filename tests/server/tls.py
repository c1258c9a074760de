"""TLS servers of many kinds for the tests, each on a port of its own on 127.0.0.1: with certificates that are good, or wrong in one
way, and with a wish for their client's certificate.

In: a folder. Out: certificates and keys in it, `log.jsonl` with a line for each handshake and each request, and one JSON line on
stdout that names each server's port.
"""

import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
SERVER, CLIENT = [ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH]


class Authority:
    """A CA, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(self.name, self.key, NOW - 9 * DAY, NOW + 9 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(self.certificate.public_bytes(PEM))

    def _builder(self, subject, key, begins, ends, issuer=None) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )

    def leaf(self, file: str, names: list[str], begins=NOW - DAY, ends=NOW + DAY, usage=SERVER, own=False, more=()):
        """Files FILE.pem and FILE.key; signed by itself when it is its own issuer."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        builder = self._builder(subject, key, begins, ends, issuer=subject if own else self.name)
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        for extension in more:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(key if own else self.key, hashes.SHA256())
        (self.folder / f"{file}.pem").write_bytes(certificate.public_bytes(PEM))
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with open(os.open(self.folder / f"{file}.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as out:
            out.write(private)
        return certificate

    def staple(self, file: str, certificate: x509.Certificate, status: ocsp.OCSPCertStatus) -> Path:
        """An OCSP response that says so of a certificate."""
        is_revoked = status == ocsp.OCSPCertStatus.REVOKED
        response = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                certificate, self.certificate, hashes.SHA1(), status, NOW - DAY / 24, NOW + DAY,
                NOW - DAY if is_revoked else None, None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, self.certificate)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{file}.ocsp"
        path.write_bytes(response.public_bytes(serialization.Encoding.DER))
        return path

    def revoked(self, file: str, certificate: x509.Certificate) -> None:
        """A list with this certificate alone."""
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(NOW - DAY)
        crl = x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(NOW - DAY)
        crl = crl.next_update(NOW + DAY).add_revoked_certificate(entry.build())
        crl = crl.add_extension(x509.CRLNumber(1), critical=False)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        crl = crl.add_extension(identifier, critical=False)
        (self.folder / file).write_bytes(crl.sign(self.key, hashes.SHA256()).public_bytes(PEM))


class Servers:
    """All of them, and what they log."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports, self.lock = folder, {}, threading.Lock()
        self.log = open(folder / "log.jsonl", "a", buffering=1)

    def tell(self, **line) -> None:
        with self.lock:
            self.log.write(json.dumps(line) + "\n")

    def add(self, name: str, certificate: str, wants=ssl.CERT_NONE, newest=ssl.TLSVersion.TLSv1_3) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{certificate}.pem", self.folder / f"{certificate}.key")
        context.maximum_version = newest
        context.verify_mode = wants
        if wants != ssl.CERT_NONE:
            context.load_verify_locations(self.folder / "company.pem")
        listener = socket.create_server(("127.0.0.1", 0))
        self.ports[name] = listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(name, listener, context), daemon=True).start()

    def accept(self, name: str, listener: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=self.serve, args=(name, plain, context), daemon=True).start()

    def serve(self, name: str, plain: socket.socket, context: ssl.SSLContext) -> None:
        self.tell(server=name, event="connection")
        plain.settimeout(30)
        try:
            with context.wrap_socket(plain, server_side=True) as stream:
                while (head := self.head(stream)) is not None:
                    subject = dict(pair[0] for pair in (stream.getpeercert() or {}).get("subject", ()))
                    told = {"server": name, "line": head.split("\r\n")[0], "peer": subject.get("commonName")}
                    self.tell(event="request", **told)
                    body = json.dumps(told).encode()
                    answer = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                    stream.sendall(answer.encode() + body)
        except OSError:
            plain.close()

    @staticmethod
    def head(stream: ssl.SSLSocket) -> str | None:
        """A request's head, or none at the end. Requests have no bodies here."""
        read = b""
        while b"\r\n\r\n" not in read:
            piece = stream.recv(4096)
            if not piece:
                return None
            read += piece
        return read.decode("latin-1")

    def add_stapling(self, name: str, certificate: str, response: Path) -> None:
        """Python's servers cannot staple; OpenSSL's own can."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ["setpriv", "--pdeathsig", "KILL", "--", "openssl", "s_server", "-www", "-quiet"]
        words += ["-accept", f"127.0.0.1:{port}"]
        words += ["-cert", self.folder / f"{certificate}.pem", "-key", self.folder / f"{certificate}.key"]
        subprocess.Popen([*words, "-status_file", response], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                pass
        self.ports[name] = port


def main() -> None:
    folder = Path(sys.argv[1])
    company, stranger = Authority(folder, "company"), Authority(folder, "stranger")
    servers = Servers(folder)
    company.leaf("good", ["good.test", "also.test", "*.wild.test", "127.0.0.1"])
    company.leaf("expired", ["bad.test"], begins=NOW - 3 * DAY, ends=NOW - DAY)
    company.leaf("early", ["bad.test"], begins=NOW + DAY, ends=NOW + 3 * DAY)
    company.leaf("misnamed", ["elsewhere.test"])
    stranger.leaf("unknown", ["bad.test"])
    company.leaf("own", ["bad.test"], own=True)
    company.leaf("purpose", ["bad.test"], usage=CLIENT)
    company.revoked("revoked.crl", company.leaf("listed", ["bad.test"]))
    for name in ["good", "expired", "early", "misnamed", "unknown", "own", "purpose", "listed"]:
        servers.add(name, name)
    must = x509.TLSFeature([x509.TLSFeatureType.status_request])
    company.leaf("unstapled", ["bad.test"], more=[must])
    servers.add("unstapled", "unstapled")
    good, revoked = ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED
    stapled = company.leaf("stapled", ["good.test"], more=[must])
    servers.add_stapling("stapled", "stapled", company.staple("stapled", stapled, good))
    withdrawn = company.leaf("withdrawn", ["bad.test"])
    servers.add_stapling("withdrawn", "withdrawn", company.staple("withdrawn", withdrawn, revoked))
    servers.add("needs12", "good", ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_2)
    servers.add("needs13", "good", ssl.CERT_REQUIRED)
    servers.add("asks", "good", ssl.CERT_OPTIONAL)
    company.leaf("job", ["job.test"], usage=CLIENT)
    company.leaf("weir", ["weir.test"], usage=CLIENT)
    # The jobs run as another user.
    os.chmod(folder / "job.key", 0o644)
    print(json.dumps({"ready": True, "ports": servers.ports}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
