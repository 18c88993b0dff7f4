"""Where the program is installed for use there is no Hypothesis, which pandera would import as it starts."""

raise ImportError("this is a test's library, not the program's")
