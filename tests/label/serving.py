"""A real MONAI Label server on loopback, in its own environment, and what its clients send.

Runs where MEDVAE_LABEL_PYTHON names the Python of requirements-label.txt; .ci/run makes it.
"""

import email
import email.policy
import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import nibabel as nib
import pytest
from bodies_of_label import MODEL

PYTHON = os.environ.get("MEDVAE_LABEL_PYTHON", "")
SERVED = [
    pytest.mark.skipif(
        not (PYTHON and os.path.exists(PYTHON)),
        reason="MEDVAE_LABEL_PYTHON does not name the Python of requirements-label.txt",
    ),
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
]
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "slicer"}
STUDIES = ["phantom0001", "phantom0002", "phantom0003"]
FIRST, SECOND = "lv_voxel_volume_ml", "myocardium_wall_thickness_mm"


class Server:
    """A server and what a client needs to talk to it: the standard library alone."""

    model = MODEL  # that `infer` asks

    def __init__(self, root, studies, bundles, command=None, threads=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.root, self.studies, self.log = root, studies, root / "server.log"
        own = [PYTHON, "-m", "medvae.label", "--studies", str(studies), "--bundles", str(bundles)]
        own += ["--device", "cpu", "--max_upload_mb", "5"]
        self.command = [*(command or own), "--port", str(self.port)]
        self.temporary = root.with_name(f"{root.name}-temporary")
        self.temporary.mkdir(exist_ok=True)
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment |= {
            "OMP_NUM_THREADS": str(threads),
            "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(root / "dcm"),
            "PATH": os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]]),
            "TMPDIR": str(self.temporary),
        }
        self.start()

    def start(self):
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.root,
            )

    def workers(self):
        """Return the processes that the server has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for path in tasks for pid in path.read_text().split()]

    def kept(self):
        """Return the images that answers and uploads have left behind."""
        return set(self.temporary.glob("medvae-label-*/*.nii.gz"))

    def forgets(self, before, seconds=5):
        """Whether it soon keeps no more than before: it removes a file after its answer."""
        end = time.monotonic() + seconds
        while self.kept() - before and time.monotonic() < end:
            time.sleep(0.1)
        return not self.kept() - before

    def memory(self, key):
        """Return kB of the server: VmRSS, what it has now, or VmHWM, the most that it had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[key].split()[0])

    def __enter__(self):
        try:
            self.ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)

    def ready(self, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self.json("GET", "/info/")[1]
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, method, path, body=b"", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, response.getheader("content-type", "")

    def json(self, method, path, value=None):
        body = b"" if value is None else json.dumps(value).encode()
        status, content, _ = self.ask(method, path, body, {"content-type": "application/json"})
        return status, json.loads(content) if content else None

    def form(self, method, path, fields=None, **files):
        """Send multipart/form-data as the clients do; files are (name, bytes)."""
        edge, parts = "----edge", []
        for name, value in (fields or {}).items():
            parts.append(f'name="{name}"\r\n\r\n'.encode() + value.encode())
        for name, (filename, content) in files.items():
            head = f'name="{name}"; filename="{filename}"\r\n\r\n'
            parts.append(head.encode() + content)
        start = f"--{edge}\r\nContent-Disposition: form-data; ".encode()
        body = b"".join(start + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
        return self.ask(
            method, path, body, {"content-type": f"multipart/form-data; boundary={edge}"}
        )

    def infer(self, image, params=None, output="image", model=None, **files):
        path = f"/infer/{model or self.model}?image={image}"
        path += f"&output={output}" if output else ""
        return self.form("POST", path, {"params": json.dumps(params or {})}, **files)

    def refused(self, *args, **kwargs):
        """Return status and sentence of an answer to `infer`."""
        status, content, _ = self.infer(*args, **kwargs)
        return status, json.loads(content)["detail"]


def volume(content, folder, name="answer.nii.gz"):
    (folder / name).write_bytes(content)
    return nib.load(folder / name)


def parts_of(content, kind):
    """Return the parts of a multipart answer by their names, as bytes."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = email.message_from_bytes(head + content, policy=email.policy.HTTP)
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in message.iter_parts()
    }


def codes(server):
    return json.loads(server.infer("phantom0001", output="json")[1])["codes"]
