"""`python -m sandboxkernel.daemon` is `sandboxkerneld`."""

from sandboxkernel.daemon.app import main

if __name__ == "__main__":
    main()
