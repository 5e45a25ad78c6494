# Looking inside.

#: `logs`, `--tail`, `--since`, `-t`, `-f`
logs() {
	docker run -d --name talker busybox sh -c 'for word in one two three; do echo $word; done; sleep 2; echo four >&2; sleep 2; echo five' >/dev/null
	docker logs -f talker 2>/dev/null
	docker logs --tail 2 talker
	docker logs talker 2>&1 >/dev/null
	docker logs --since 2001-01-01 --until 2002-01-01 talker
	docker logs -t talker | awk '{ print $1 ~ /^20..-..-..T/, $2 }'
}

#: `exec`: `-u`, `-w`, `-e`, `-d`, `-i`, `--privileged`, exit codes 126, 127
exec_plain() {
	docker run -d --name host busybox sleep 1000 >/dev/null
	docker exec -u 1000 -w /tmp -e WORD=tide host sh -c 'id -u; pwd; echo $WORD'
	echo piped | docker exec -i host cat
	docker exec -d host touch /made
	wait_for docker exec host test -e /made
	says 7 '' docker exec host sh -c 'exit 7'
	# Status 126 of Docker 26, 127 of Docker 28.
	docker exec host no-such-program >said 2>&1 || echo "status $?"
	grep -o 'executable file not found' said
	says 126 'permission denied' sh -c 'docker exec host /etc/passwd >&2'
	docker exec --privileged host sh -c 'grep CapEff /proc/self/status | grep -c 00000000a80425fb || echo all'
	docker exec host sh -c 'kill -9 $$' || echo "status $?"
	docker kill host
	says 1 'is not running' docker exec host true
}

#: `exec -it`: a terminal and its new size
exec_terminal() {
	docker run -d --name host busybox sleep 1000 >/dev/null
	cat >session <<-'EOF'
		stty cols 90 rows 20
		(until docker exec host test -e /seen; do sleep 0.2; done; stty cols 111 rows 22 </dev/tty; kill -WINCH $$) &
		becomes='becomes() { until [ "$(stty size)" = "$1" ]; do sleep 0.2; done; stty size; }'
		exec docker exec -it host sh -c "$becomes; becomes '20 90'; touch /seen; becomes '22 111'"
	EOF
	script --quiet --return --command 'bash session' /dev/null | sed 's/\^@//'
	docker kill host
}

#: `inspect` and its templates, `ps`, `ps -a`, filters, `--format`, `port`
inspect() {
	docker run -d --name shown -p 127.0.0.1:8091:80 -v data:/data --label sea=north busybox sleep 1000 >/dev/null
	docker inspect --format '{{.State.Status}} {{.Path}} {{.Args}} {{.Config.Image}} {{.RestartCount}} {{.Driver}} {{len .Mounts}}' shown
	docker inspect --format '{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}' shown
	pid=$(docker inspect --format '{{.State.Pid}}' shown)
	test -d "/proc/$pid"
	address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' shown)
	nsenter --net="/proc/$pid/ns/net" ip -4 addr show eth0 | grep -c "inet $address/16"
	docker port shown
	docker ps --filter label=sea=north --filter status=running --format '{{.Names}} {{.Image}} {{.Ports}} {{.State}}'
	docker kill shown
	docker ps -a --filter name=shown --filter exited=137 --format '{{.Names}} {{.State}}'
	test -z "$(docker ps -q)"
}

#: `top`: the container's processes
top() {
	docker run -d --name busy busybox sh -c 'su app -c "exec sleep 1001" & sleep 1002' >/dev/null
	wait_for sh -c 'docker top busy -o pid,args | grep "[0-9]  *sleep 1001"' >/dev/null
	docker top busy -o pid,args | sed 's/^ *[0-9]* *//' | sort
	docker top busy -o pid,user,comm | sed 's/^ *[0-9]* *//' | sort
	# Users, commands; not pids, times and the terminal.
	docker top busy | awk '{ print $1, $8, $9, $10, $11 }' | sort
	# Its pids are those of the host.
	for pid in $(docker top busy -o pid | tail -n +2); do kill -0 "$pid"; done
	docker kill busy
}

#: `stats --no-stream`: CPU, memory, network, block, pids
stats() {
	docker run -d --name busy busybox sh -c 'sleep 1000 & dd if=/dev/zero of=/dev/shm/load bs=1M count=20 2>/dev/null; ping -c 3 172.17.0.1 >/dev/null; while :; do :; done' >/dev/null
	wait_for docker exec busy sh -c 'test $(stat -c %s /dev/shm/load) = 20971520'
	sleep 3
	docker stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.NetIO}} {{.PIDs}}' busy >said
	cat said >&2
	# About one CPU; 20 MiB and a little; a few packets; two processes.
	awk '{ gsub("%", "", $2); print $1, ($2 > 50 && $2 < 250), ($3 ~ /MiB$/ && $3 + 0 > 19 && $3 + 0 < 40), ($6 != "0B" && $6 !~ /^0[kM]?B/), $9 }' said
	docker kill busy
}

#: `cp` both ways, running and stopped; `diff`; `commit`; `export`: what the guest wrote, at once
files() {
	docker run -d --name box busybox sleep 1000 >/dev/null
	docker exec box sh -c 'echo tide >/new; echo more >>/etc/passwd; rm /etc/group; mkdir /dir; ln -s new /dir/link; chown 1000:1000 /new'
	docker diff box | sort
	docker cp -q box:/new - | tar -tv | awk '{ print $1, $2, $3, $NF }'
	echo given >given
	docker cp -q given box:/dir/given
	docker exec box cat /dir/given
	docker commit box boxed >/dev/null
	docker export box | tar -xO new
	docker kill box
	docker cp -q box:/dir/given - | tar -xO
	echo changed >given
	docker cp -q given box:/dir/given
	docker start box
	docker exec box cat /dir/given
	docker run --rm boxed sh -c 'exec 2>&1; cat /new; tail -n 1 /etc/passwd; readlink /dir/link; stat -c %u /new; ls /etc/group' || echo "status $?"
	docker rm -f box
	docker rmi boxed >/dev/null
}

#: `cp` into and out of a volume of a running container
cp_volume() {
	docker run -d --name box -v data:/data busybox sh -c 'echo tide >/data/file; sleep 1000' >/dev/null
	wait_for docker exec box test -s /data/file
	docker cp -q box:/data/file - | tar -xO
	echo given >given
	docker cp -q given box:/data/given
	docker exec box cat /data/given
	docker kill box
}

#: `events`: what happened, in order
events() {
	since=$(date +%s)
	docker run --name told busybox sh -c 'exit 3' || echo "status $?"
	docker rm told
	docker events --since "$since" --until "$(($(date +%s) + 1))" --filter type=container \
		--format '{{.Action}} {{.Actor.Attributes.exitCode}}'
}

#: `update`: limits of a running container
update() {
	docker run -d --name box --memory 64m --memory-swap 64m busybox sleep 1000 >/dev/null
	docker update --memory 48m --memory-swap 48m --cpus 0.25 --pids-limit 33 box
	docker exec box sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max pids.max'
	docker inspect --format '{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}' box
	docker kill box
}
