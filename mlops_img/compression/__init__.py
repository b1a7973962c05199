"""From a trained model to small, fast, verified programs."""

import logging

# Both tell of PyTorch's own affairs, at import, whatever one does with it.
for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):
    logging.getLogger(name).setLevel(logging.ERROR)
