# The one image of the project: root file system of the managed plugin, and of
# the short-lived containers through which `particle` works on a Docker host.
# The three programs are static, so nothing else is in it.
FROM scratch
LABEL particle.image=true
COPY particle particle-docker-plugin particle-runtime /bin/
ENTRYPOINT ["/bin/particle"]
