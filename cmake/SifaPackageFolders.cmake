# Read by cpack, once per kind of package: where in it the files are. A tarball is unpacked anywhere.
if(CPACK_GENERATOR STREQUAL "DEB")
  set(CPACK_PACKAGING_INSTALL_PREFIX /opt/sifa)
else()
  set(CPACK_PACKAGING_INSTALL_PREFIX /)
endif()
