"""What the programs and the notebook import; see the README's "What is where"."""

import warnings

warnings.filterwarnings("ignore", "IProgress")  # a library of Optuna's looks for widgets, and says so in a notebook
