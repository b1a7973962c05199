"""From a trained model to small, fast, verified programs."""

import logging

# Both packages warn about PyTorch's internals when they are imported.
for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
    logging.getLogger(name).setLevel(logging.ERROR)
