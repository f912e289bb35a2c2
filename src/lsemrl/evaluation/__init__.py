"""How good outputs are: corpus metrics, CMRC 2018, and the report that sets the arms side by side."""
