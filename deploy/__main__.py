"""`python -m deploy` is `galvanic`."""

from deploy.cli import main

main(prog_name="galvanic")
