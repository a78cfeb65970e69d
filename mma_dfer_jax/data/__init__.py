"""The life of a clip, from a video file to a batch; nothing in here imports JAX.

media      a video file -> frames and sound
datasets   clips -> records on disk (tfds, ArrayRecord)         prepare  the command that writes them
frames     which frames, and what is done to their pixels
fbank      sound -> log-mel spectrogram
pipeline   records -> examples -> batches (grain)
demo       draws and voices clips to try all of it on
"""
