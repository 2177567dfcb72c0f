"""Images without a container engine: a Dockerfile's steps in a Debian root, and an OCI archive of the result.

Called by tools/images where there is no docker, podman or buildah. The Dockerfile stays the one description
of an image; what is in here knows of those instructions that images/ uses, and refuses others by name.
"""
