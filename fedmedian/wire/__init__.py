"""Wire format of scalars and arrays between server and clients."""
