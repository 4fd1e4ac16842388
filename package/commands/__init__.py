"""One module per verb of the command line; each defines a click command of its own name.

Contract  A module is imported only when its verb is used, and imports torch, transformers and the like only
          inside its functions.
"""
