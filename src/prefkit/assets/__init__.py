"""The tiny model and the sample comparisons of the offline default."""
