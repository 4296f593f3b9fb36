"""`maya1-tts optimize`: smaller and faster graphs for the service, each judged before it is put into place.

export    SNAC's decoder from torch to ONNX
fp16      16-bit floats where they do no harm
int8      8-bit convolutions, calibrated with real input
tensorrt  an engine for the GPU of this machine

A step writes to a temporary file, compares its output with the reference, and puts the file into place only
when the difference is within bounds. Numbers go to a report. Nothing here is imported by the service.
"""
