"""Pillow's side of every operation of augmentation: what ours is compared with."""

from collections.abc import Callable

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Centre = tuple[float, float]


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def cutout(image: Image.Image, value: float, centre: Centre) -> Image.Image:
    if value <= 0:
        return image
    width, height = image.size
    side = value * width
    left, top = int(max(0, centre[0] - side / 2)), int(max(0, centre[1] - side / 2))
    corners = (left, top, min(width, left + side), min(height, top + side))
    image = image.copy()
    ImageDraw.Draw(image).rectangle(corners, (125, 123, 114))
    return image


PILLOW: dict[str, Callable[[Image.Image, float, Centre], Image.Image]] = {
    "ShearX": lambda image, v, _: affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v, _: affine(image, 1, 0, 0, v, 1, 0),
    "TranslateX": lambda image, v, _: affine(image, 1, 0, v * image.size[0], 0, 1, 0),
    "TranslateY": lambda image, v, _: affine(image, 1, 0, 0, 0, 1, v * image.size[1]),
    "Rotate": lambda image, v, _: image.rotate(v),
    "AutoContrast": lambda image, v, _: ImageOps.autocontrast(image),
    "Invert": lambda image, v, _: ImageOps.invert(image),
    "Equalize": lambda image, v, _: ImageOps.equalize(image),
    "Solarize": lambda image, v, _: ImageOps.solarize(image, v),
    "Posterize": lambda image, v, _: ImageOps.posterize(image, int(v)),
    "Contrast": lambda image, v, _: ImageEnhance.Contrast(image).enhance(v),
    "Color": lambda image, v, _: ImageEnhance.Color(image).enhance(v),
    "Brightness": lambda image, v, _: ImageEnhance.Brightness(image).enhance(v),
    "Sharpness": lambda image, v, _: ImageEnhance.Sharpness(image).enhance(v),
    "Cutout": cutout,
}
