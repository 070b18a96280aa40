# ConvNeXt-T (arXiv 2201.03545): UperNet, ADE20K, crop 512x512, 160k iterations.
# The recipe of ViG-H-T with another backbone: nothing else differs, drop path included.
_base_ = '../vig-h-t_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
        drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
