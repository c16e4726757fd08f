"""The commands that make a part that a run does not have."""

BUNDLE = "bundles/attri_vae/configs"

TRAIN = (
    f"python -m monai.bundle run training --bundle_root RUN_DIR --config_file {BUNDLE}/train.yaml"
)
EVALUATE = (
    "python -m monai.bundle run evaluating --bundle_root RUN_DIR --config_file "
    f"\"['{BUNDLE}/train.yaml','{BUNDLE}/evaluate.yaml']\""
)
MANIPULATE = (
    "python -m monai.bundle run manipulating --bundle_root RUN_DIR --config_file "
    f"\"['{BUNDLE}/train.yaml','{BUNDLE}/manipulation.yaml']\""
)
INFER = (
    "python -m monai.bundle run --bundle_root RUN_DIR --traversals true "
    f"--config_file {BUNDLE}/inference.yaml"
)
REBUILD = "python -m medvae.report RUN_DIR"
