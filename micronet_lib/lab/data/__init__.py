"""The images, and the files that hold them."""
