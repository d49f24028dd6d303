"""`python -m pagoda` is `pagoda`."""

from pagoda.cli.main import main

main()
