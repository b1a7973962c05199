"""The former command `python -m mlops_img.data.audit`, kept as an alias of `python -m mlops_img.audit`."""

from mlops_img.audit import main

if __name__ == "__main__":
    main()
