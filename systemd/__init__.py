"""The files of the service, as `orcawatch deploy install` writes them."""
