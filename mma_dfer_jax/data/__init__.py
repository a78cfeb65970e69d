"""The life of a clip, from a video file to a batch; nothing in here imports JAX.

source, sources/   what a data set's file says, and one file for each data set
archive, listed    what several of them share: folders and files of clips, lists of folds
labels, counts     what is published of them, and clips compared with it
records            clips -> records on disk (tfds, ArrayRecord)   prepare  the command that writes or checks them
data_set           records on disk, opened                        doctor   whether they are fit for training
media, film        a video file -> frames and sound, samples      faces    which face is followed and cut out
frames, fbank      which frames and pixels; sound -> log-mel spectrogram
pipeline           records -> examples -> batches (grain)         demo     clips to try all of it on
"""
