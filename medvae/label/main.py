"""What MONAI Label looks for in the folder that `--app` names: this folder."""

from medvae.label.app import MyApp

__all__ = ["MyApp"]
