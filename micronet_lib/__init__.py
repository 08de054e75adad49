"""The library behind the MicroNet book: methods here, experiments in `micronet_lib.lab`."""
