"""How fast a training step is, beside others and beside what the device can do: `hardpatch bench`."""
