"""Video files -> equirectangular frames worth using."""
