"""Faults in data: in single files, in whole data sets, and what shows quickly before a run.

`files` looks at one image, label map or COCO file; `quick` at the data that a config names, without
opening images; `survey` reads every file of it; `guard` stops a run at a file that does not fit.
"""
