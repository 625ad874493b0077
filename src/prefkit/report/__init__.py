"""Tables, plots and HTML."""
