"""What the commands do, between their flags (cli.py) and the pipeline."""
