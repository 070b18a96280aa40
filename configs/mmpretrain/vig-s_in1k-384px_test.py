# ViG-S, ImageNet-1K validation at 384x384 with weights trained at 224x224 (test only).
_base_ = './vig-s_8xb128_in1k.py'

test_pipeline = _base_.test_pipeline
test_pipeline[1].scale, test_pipeline[2].crop_size = 438, 384  # as 256, 224
test_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
tta_pipeline = [*test_pipeline[:3], _base_.tta_pipeline[-1]]
