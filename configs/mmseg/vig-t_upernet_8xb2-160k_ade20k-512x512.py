# UperNet, ViG-T through the plain multi-level neck, ADE20K, 160k iterations: the recipe of ViG-T
# with ViT-Adapter; initial weights: vig_t.pth.
_base_ = './vig-t-adapter_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    # blocks 2, 5, 8, 11: enlarged by 4 and 2 (deconvolutions), as they are, halved (max pooling)
    backbone=dict(
        _delete_=True,
        type='vig_mm.ViG',
        arch='tiny',
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1),
    neck=dict(
        type='Feature2Pyramid',
        embed_dim=192,
        rescales=[4, 2, 1, 0.5],
        norm_cfg=dict(type='SyncBN', requires_grad=True)))
