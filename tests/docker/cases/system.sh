# The whole of it.

#: `info`, `version`: the runtimes and the default one
about() {
	docker info --format '{{index .Runtimes "hull" | printf "%T"}} {{.CgroupVersion}}'
	test "$(docker info --format '{{.DefaultRuntime}}')" = "$runtime"
	docker version --format '{{.Server.Os}}/{{.Server.Arch}}'
}

#: `system df`
disk_usage() {
	docker run --name full -v cargo:/cargo busybox sh -c 'head -c 1048576 /dev/zero >/file; head -c 2097152 /dev/zero >/cargo/file'
	docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}' | grep -v -e Images -e 'Build Cache'
	docker system df -v --format '{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}{{end}}'
	docker ps -as --format '{{.Size}}' | sed 's/ (.*//'
}

#: `container prune`, `volume prune`, `network prune`, `system prune --volumes`
prune() {
	docker run -d --name runs -v kept:/kept --network bridge busybox sleep 1000 >/dev/null
	docker run --name over busybox true
	docker volume create lost >/dev/null
	docker network create lost >/dev/null
	docker container prune -f | grep -c '^[0-9a-f]'
	docker volume prune -af | head -n 2
	docker network prune -f
	docker run --name over busybox true
	docker network create lost >/dev/null
	docker system prune -f --volumes | grep -v -e 'build cache' -e reclaimed
	docker ps -a --format '{{.Names}} {{.State}}'
	docker volume ls -q
}
