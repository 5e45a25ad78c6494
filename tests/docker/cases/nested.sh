# Docker in Docker.

# A file system for a dockerd with the programs of this host, and a script that starts it.
tree() {
	mkdir -p tree/{dev,etc,mnt,proc,root,run,sys,tmp,usr,var/lib/docker}
	ln -s usr/bin usr/sbin usr/lib usr/lib64 tree
	ln -s /run tree/var/run
	cp -r /etc/passwd /etc/group /etc/ssl /etc/alternatives tree/etc
	cat >tree/begin <<-'SCRIPT'
		#!/bin/bash -e
		# Controllers are given to groups below one that has no processes itself.
		mkdir /sys/fs/cgroup/init
		xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || true
		sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
		# dockerd would give it 15 seconds, of which a machine in an emulated one needs more.
		containerd >/var/containerd 2>&1 &
		until ctr version >/dev/null 2>&1; do sleep 0.2; done
		exec dockerd --containerd /run/containerd/containerd.sock >/var/log 2>&1
	SCRIPT
	chmod +x tree/begin
	tar -C tree -c . | docker import - built >/dev/null
	docker save busybox >busybox.tar
}

#: `dockerd` in a `--privileged` container: images, containers, published ports, networks with names, limits
daemon() {
	tree
	docker run -d --name outer --privileged -v /usr:/usr:ro -v /var/lib/docker \
		-v "$PWD/busybox.tar:/busybox.tar:ro" built /begin >/dev/null
	wait_patience=180 wait_for docker exec outer docker version >/dev/null || { docker exec outer cat /var/log && false; }
	inner() { docker exec outer docker "$@"; }
	inner info --format '{{.Driver}}'
	inner load -qi /busybox.tar
	inner run --rm --name inmost busybox sh -c 'hostname | wc -c; id -u; echo deep'
	inner run --rm --memory 64m busybox sh -c 'cat /sys/fs/cgroup/memory.max'
	inner network create sea >/dev/null
	inner run -d --name web --network sea -p 8080:80 busybox \
		sh -c 'mkdir /www; echo tide >/www/index.html; exec httpd -f -h /www' >/dev/null
	wait_patience=300 wait_for docker exec outer docker run --rm --network sea busybox wget -qO- http://web
	wait_patience=180 wait_for docker exec outer busybox wget -qO- http://127.0.0.1:8080
	printf 'FROM busybox\nRUN echo built >/file\nCMD cat /file\n' >Dockerfile
	docker exec -i outer docker build -q -t made - <Dockerfile >/dev/null
	inner run --rm made
	inner ps --format '{{.Names}} {{.Image}}'
	# The host has none of it.
	docker ps --format '{{.Names}}'
	docker images --format '{{.Repository}}' | sort -u
	docker rm -fv outer
}
