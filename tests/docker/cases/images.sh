# Images.

#: `tag`, `images`, `history`, `inspect`, `rmi`, `image prune`
local_images() {
	docker tag busybox localhost/copy:1
	docker images --format '{{.Repository}}:{{.Tag}}' | sort
	docker image inspect --format '{{.Os}}/{{.Architecture}} {{len .RootFS.Layers}}' localhost/copy:1
	docker history --format '{{.CreatedBy}}' localhost/copy:1
	docker rmi localhost/copy:1
	docker image prune -f
}

#: `commit`, `save`, `load`, `export`, `import`
archives() {
	docker run --name made busybox sh -c 'echo tide >/file'
	docker commit --change 'CMD ["cat", "/file"]' --change 'ENV WORD=tide' made made:1 >/dev/null
	docker run --rm made:1
	docker save -o made.tar made:1
	docker rmi made:1 >/dev/null
	docker load -i made.tar
	docker run --rm made:1
	docker export made | docker import --change 'CMD ["cat", "/file"]' - flat:1 >/dev/null
	docker run --rm flat:1
	docker rmi made:1 flat:1 >/dev/null
}

#: `push`, `pull` with a private registry
registry() {
	cat >registry.yml <<-EOF
		version: 0.1
		storage: {filesystem: {rootdirectory: $PWD/registry}}
		http: {addr: "127.0.0.1:5000"}
	EOF
	docker-registry serve registry.yml >registry.log 2>&1 &
	local registry=$!
	wait_for wget -q -O - http://127.0.0.1:5000/v2/
	docker tag busybox 127.0.0.1:5000/fleet/busybox:1
	docker push -q 127.0.0.1:5000/fleet/busybox:1
	docker rmi 127.0.0.1:5000/fleet/busybox:1 >/dev/null
	docker run --rm --pull always -q 127.0.0.1:5000/fleet/busybox:1 echo pulled
	docker rmi 127.0.0.1:5000/fleet/busybox:1 >/dev/null
	kill "$registry"
}

#: `login`, `logout`; a registry that wants to know who asks
login() {
	# The password is "tide".
	echo 'captain:$2y$05$abcdefghijklmnopqrstuuWajY63IPhp4aM1A33qG7bHBcI3BncPu' >users
	cat >registry.yml <<-EOF
		version: 0.1
		storage: {filesystem: {rootdirectory: $PWD/registry}}
		http: {addr: "127.0.0.1:5001"}
		auth: {htpasswd: {realm: fleet, path: $PWD/users}}
	EOF
	docker-registry serve registry.yml >registry.log 2>&1 &
	local registry=$! image=127.0.0.1:5001/fleet/busybox:1
	wait_for socat -u OPEN:/dev/null TCP:127.0.0.1:5001
	docker tag busybox "$image"
	says 1 'no basic auth credentials|unauthorized' docker push -q "$image"
	echo wrong | says 1 '[Uu]nauthorized' docker login -u captain --password-stdin 127.0.0.1:5001
	echo tide | docker login -u captain --password-stdin 127.0.0.1:5001 2>/dev/null
	docker push -q "$image"
	docker rmi "$image" >/dev/null
	docker run --rm --pull always -q "$image" echo pulled
	docker logout 127.0.0.1:5001
	docker rmi "$image" >/dev/null
	kill "$registry"
}

#: containerd's image store (`"features": {"containerd-snapshotter": true}`): `load`, `run`, `commit`, `diff`, `cp`, `build`, a restart
containerd_store() {
	configure '"features": {"containerd-snapshotter": true}'
	stop_dockerd
	start_dockerd
	trap 'configure ""; stop_dockerd; start_dockerd' EXIT
	docker info --format '{{.DriverStatus}}'
	docker load -qi "$here/image.tar" >/dev/null
	docker tag localhost/hull/busybox:latest busybox:latest
	docker run --name made -v cargo:/cargo busybox sh -c 'echo tide >/file; echo kept >/cargo/file; rm /etc/group'
	docker diff made | grep -v '^C /root'
	docker cp made:/file - | tar -xO
	docker commit --change 'CMD ["cat", "/file"]' made made:1 >/dev/null
	docker run --rm made:1
	printf 'FROM made:1\nRUN echo wave >>/file && chown 7:8 /file\n' | DOCKER_BUILDKIT=0 docker build -qt built - >/dev/null
	docker run --rm built sh -c 'cat /file; stat -c %u:%g /file'
	docker run -d --name again -v cargo:/cargo --restart on-failure busybox sh -c 'cat /cargo/file; sleep 1000' >/dev/null
	wait_for_log again kept
	docker restart -t 1 again
	wait_for_log again 'kept.*kept'
	docker rm -fv made again >/dev/null
	docker volume rm cargo
	docker rmi -f made:1 built busybox localhost/hull/busybox >/dev/null
}
