"""Start the MONAI Label server on this machine alone: `python -m medvae.label --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from medvae.label.first_look import first_look

MAIN = "from medvae.label.app import MyApp\n\n__all__ = ['MyApp']\n"
CONF = ("bundles", "models", "device", "mask_tag", "max_upload_mb", "skip_trainers")


def main(arguments: list[str] | None = None) -> None:
    """Run MONAI Label's server with this app; it ends with Ctrl-C."""
    given, others = _parser().parse_known_args(arguments)
    if given.first_look:
        given.studies, given.bundles = first_look(given.first_look, given.bundle)
    if not (given.studies and given.bundles):
        raise SystemExit("Error: --studies and --bundles are not both given; expected two folders.")
    with tempfile.TemporaryDirectory(prefix="medvae-label-app-") as folder:
        # MONAI Label writes its logs into the app's folder: not into the installed package
        (Path(folder) / "main.py").write_text(MAIN)
        sys.argv = ["monailabel", "start_server", "--app", folder, "--studies", given.studies]
        sys.argv += ["--host", given.host, "--port", str(given.port)]
        for key in CONF:
            value = getattr(given, key)
            sys.argv += ["--conf", key, value] if value else []
        sys.argv += others
        _server()


def _server() -> None:
    try:
        from monailabel.main import Main
    except ImportError as error:
        raise SystemExit(
            f"Error: MONAI Label cannot be imported ({error}); expected the environment of "
            "requirements-label.txt."
        ) from error
    Main().run()


def _parser() -> argparse.ArgumentParser:
    others = "Other arguments, such as --ssl_keyfile, go to `monailabel start_server`."
    parser = argparse.ArgumentParser("python -m medvae.label", description=__doc__, epilog=others)
    add = parser.add_argument
    add("--studies", help="folder of images, or the address of a DICOMweb server")
    add("--bundles", help="folder of trained bundles, or one of them")
    add("--models", help="names of those to be served, by commas; all, if not given")
    add("--device", help="cpu or cuda; as the bundle says, if not given")
    add("--mask_tag", help="tag of the labels that are masks; final, if not given")
    add("--max_upload_mb", help="longest body of a request; 2000, if not given")
    add("--skip_trainers", help="true: clients cannot train")
    add("--host", default="127.0.0.1", help="whom it listens to: this machine alone")
    add("--port", default=8000, type=int)
    add("--first-look", metavar="FOLDER", help="train on phantoms there, if not yet, and serve")
    add("--bundle", default="bundles/attri_vae", help="of the first look")
    return parser


if __name__ == "__main__":
    main()
