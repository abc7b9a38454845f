"""What every floor of the library may use: errors, number formats, l2 normalisation."""
