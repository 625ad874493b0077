"""The language domain: scores for comparisons of texts under causal language models."""
