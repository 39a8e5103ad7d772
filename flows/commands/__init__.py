"""The commands, a file each kind; importing one loads nothing heavy."""
