"""Networks: modules of Flax NNX and the autoencoders of images."""
