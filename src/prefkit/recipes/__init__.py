"""One file a published system: a composition of parts, and the experiment that shows its claim."""
