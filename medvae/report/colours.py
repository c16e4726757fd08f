"""The colours of every drawing: scales that are perceptually uniform, safe for the colour-blind."""

__all__ = ["CATEGORIES", "EVIDENCE", "GREY", "SHARE", "SIGNED", "SPLITS"]

# names that matplotlib gives them
GREY = "gray"  # intensities of images
EVIDENCE = "inferno"  # amounts above 0 that lie on an image
SHARE = "cividis"  # numbers in tables, matrices and points
SIGNED = "berlin"  # differences: dark at 0, blue below, red above

# Okabe and Ito 2008: told apart with every kind of colour vision, on white and on black
CATEGORIES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B3A100",
)  # fmt: skip
SPLITS = {"train": "#9A9A9A", "val": CATEGORIES[1], "test": CATEGORIES[0]}
