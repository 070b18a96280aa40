# The small classifier of `vig-h-mini_digits.py` on 16-bit TIFF of four bands.
# `python tools/data/digits_to_bands.py` writes the data.
_base_ = 'vig-h-mini_digits.py'

model = dict(
    data_preprocessor=dict(
        # the three of RGB, and the grey picture's negative
        mean=[123.675, 116.28, 103.53, 140.0],
        std=[58.395, 57.12, 57.375, 57.0],
        to_rgb=False),
    backbone=dict(in_channels=4))

load = dict(type='vig_mm.LoadTiff', scale=255 / 65535)
train_pipeline = [load, *_base_.train_pipeline[1:]]
test_pipeline = [load, *_base_.test_pipeline[1:]]
tta_pipeline = [load, *_base_.tta_pipeline[1:]]
data = dict(data_root='data/digits/bands', extensions=('.tif', ))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
