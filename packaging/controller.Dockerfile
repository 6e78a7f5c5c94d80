# The controller as an image. Everything it needs, its Python and C library too, is in the bundle, so any base does that has
# /bin/sh and install(1). From the root of the repository, after `make bundles`:
#   docker build --file packaging/controller.Dockerfile --tag moorage-controller .
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG VERSION=0.1.0
# One folder is in the archive, of the build's name. A link, not a move: that would be in the image twice.
ADD dist/moorage-controller-${VERSION}-linux-x86_64.tar.gz /opt/moorage/
RUN ln -s /opt/moorage/* /usr/lib/moorage-controller \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/moorage-controller
COPY dist/moorage-agent-${VERSION}-linux-x86_64.tar.gz /usr/share/moorage-controller/moorage-agent.tar.gz
ENV HOST=0.0.0.0 PORT=3000 NODE_ENV=production MOORAGE_DATA_DIR=/var/lib/moorage-controller \
    MOORAGE_AGENT_BUNDLE=/usr/share/moorage-controller/moorage-agent.tar.gz
USER 10001:10001
VOLUME /var/lib/moorage-controller
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s \
    CMD ["/usr/lib/moorage-controller/moorage-controller", "healthcheck"]
ENTRYPOINT ["/usr/lib/moorage-controller/moorage-controller"]
CMD ["serve"]
