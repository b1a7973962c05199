"""The audit under its older name, `python -m mlops_img.data.audit`; today it is `python -m mlops_img.audit`."""

from mlops_img.audit import main

if __name__ == "__main__":
    main()
