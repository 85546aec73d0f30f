"""sslt: self-supervised pretraining, transfer and evaluation, for images and text, from one command."""

__version__ = "0.1.0"
