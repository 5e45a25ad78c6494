# Volumes and mounts.

#: named volumes: `create`, `ls`, `inspect`, `rm`, filters; shared, surviving `rm`
named() {
	docker volume create --label sea=north data
	docker run --rm -v data:/data busybox sh -c 'echo tide >/data/file; chown 1000 /data/file'
	docker run -d --name other -v data:/data:ro busybox sleep 1000 >/dev/null
	docker exec other sh -c 'exec 2>&1; cat /data/file; stat -c %u /data/file; touch /data/x; echo "status $?"'
	docker run --rm -v data:/data busybox sh -c 'echo late >/data/late'
	wait_for docker exec other cat /data/late
	docker volume ls --filter label=sea=north --format '{{.Name}} {{.Driver}}'
	docker volume inspect --format '{{.Mountpoint}}' data
	says 1 'in use' docker volume rm data
	docker rm -f other
	docker volume rm data
}

#: anonymous volumes, `--rm` removes them, `volume prune`; copy-up from the image
anonymous() {
	docker run --rm -v /home busybox sh -c 'ls -d /home/app; stat -c %a /home'
	test -z "$(docker volume ls -q)"
	docker run --name keeps -v /etc busybox sh -c 'head -n 1 /etc/passwd; ls /etc/group'
	docker rm keeps
	docker volume ls -q | wc -l
	docker volume prune -af | sed 's/^[0-9a-f]*$/ID/'
}

#: bind mounts, `:ro`, `--mount`; changes on the host and in the container seen on the other side
binds() {
	mkdir -p there
	echo host >there/file
	docker run -d --name box -v "$PWD/there:/here" --mount "type=bind,source=$PWD/there,destination=/fixed,readonly" busybox sleep 1000 >/dev/null
	docker exec box sh -c 'exec 2>&1; cat /here/file /fixed/file; touch /fixed/x; echo "status $?"; echo guest >/here/guest'
	cat there/guest
	echo changed >there/file
	wait_for docker exec box grep -x changed /here/file
	mkdir there/dir
	wait_for docker exec box test -d /here/dir
	says 125 'bind source path does not exist' docker run --rm --mount type=bind,source=/nowhere,destination=/x busybox true
	docker kill box
}

#: single files: a configuration file, rewritten in place; hosts, hostname
single_files() {
	echo one >config
	docker run -d --name box --hostname ship -v "$PWD/config:/etc/config:ro" busybox sleep 1000 >/dev/null
	docker exec box sh -c 'cat /etc/config /etc/hostname; echo "192.0.2.9 buoy" >>/etc/hosts; grep buoy /etc/hosts'
	echo two >config
	wait_for docker exec box grep -x two /etc/config
	docker kill box
}

#: the backup idiom: `--rm -v VOLUME:/data -v $(pwd):/backup ... tar`, `--volumes-from`
backup() {
	docker run --name source -v data:/data busybox sh -c 'mkdir /data/deep; echo tide >/data/deep/file'
	docker run --rm --volumes-from source -v "$PWD:/backup" busybox tar -C /data -cf /backup/data.tar .
	tar -tf data.tar | sort
	docker run --rm -v copy:/data -v "$PWD:/backup:ro" busybox sh -c 'tar -C /data -xf /backup/data.tar; cat /data/deep/file'
}

#: inotify in a volume: changes made in the container
inotify() {
	docker run --rm -v data:/data busybox sh -c 'timeout 5 tail -F /data/log 2>/dev/null & sleep 1; echo line >>/data/log; wait; rm /data/log'
}

#: file locks within a container, and between containers that share a network
locks() {
	docker run --rm -v data:/data localhost/hull/services sh -c '
		exec 9>/data/lock; flock -n 9 && echo mine
		flock -n /data/lock true; echo "status $?"; flock -u 9; flock -n /data/lock echo free'
	docker run -d --name holder -v data:/data localhost/hull/services flock /data/lock sleep 1000 >/dev/null
	docker run -d --name sidecar --network container:holder -v data:/data localhost/hull/services sleep 1000 >/dev/null
	wait_for docker exec sidecar sh -c '! flock -n /data/lock true'
	docker rm -f holder >/dev/null
	docker exec sidecar flock -n /data/lock echo free
}
