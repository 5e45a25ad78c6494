# Swarm.

#: `swarm init`, `node ls`; `service create`, `ls`, `ps`, `scale`, `logs`, `update`, `rollback`, `rm`
services() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	docker node ls --format '{{.Status}} {{.Availability}} {{.ManagerStatus}}'
	docker service create --quiet --name bell --replicas 2 --no-resolve-image busybox sh -c 'echo ding; exec sleep 1000' >/dev/null
	docker service ls --format '{{.Name}} {{.Mode}} {{.Replicas}}'
	docker service scale bell=3 >/dev/null
	docker service ps bell --format '{{.Name}} {{.DesiredState}}' | sort
	wait_for sh -c 'test "$(docker service logs --raw bell | grep -c ding)" = 3'
	docker service update --quiet --no-resolve-image --env-add TURN=second --stop-grace-period 0s bell >/dev/null
	docker service inspect --format '{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}}' bell
	docker service rollback --quiet bell >/dev/null
	docker service inspect --format '{{.UpdateStatus.State}} {{.Spec.TaskTemplate.ContainerSpec.Env}}' bell
	docker service rm bell
	wait_for sh -c 'test -z "$(docker ps -q)"'
}

#: an overlay network: service names, the virtual address, ports published through the ingress network and on the host
overlay() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	docker network create -d overlay --attachable --subnet 198.18.20.0/24 sea >/dev/null
	docker service create --quiet --no-resolve-image --name web --network sea --replicas 2 -p 8086:80 busybox \
		sh -c 'echo tide >/index.html; exec httpd -f -h /' >/dev/null
	docker service create --quiet --no-resolve-image --name direct -p mode=host,published=8087,target=80 busybox \
		sh -c 'echo direct >/index.html; exec httpd -f -h /' >/dev/null
	docker service create --quiet --no-resolve-image --name client --network sea busybox sleep 1000 >/dev/null
	client=$(docker ps -q --filter name=client)
	wait_for docker exec "$client" wget -q -O - http://web/
	wait_for docker exec "$client" wget -q -O - http://tasks.web/
	docker exec "$client" nslookup -type=a tasks.web 127.0.0.11 | grep -c '^Name:'
	docker run --rm --network sea busybox wget -q -O - http://web/
	wait_for wget -q -O - http://127.0.0.1:8087/
	wait_for wget -q -O - http://127.0.0.1:8086/
}

# A second host: a network namespace with a dockerd of its own.
second() { docker -H unix:///run/second.sock "$@"; }
second_host() {
	ip netns add second
	ip link add first type veth peer name eth0 netns second
	ip address add 198.18.30.1/24 dev first
	ip link set first up
	ip -n second address add 198.18.30.2/24 dev eth0
	ip -n second link set eth0 up
	ip -n second link set lo up
	jq '. + {"bridge": "none"}' /etc/docker/daemon.json >/tmp/second.json
	# containerd is the first's, and is to see what this one mounts.
	setsid nsenter --net=/run/netns/second dockerd --host unix:///run/second.sock --config-file /tmp/second.json \
		--data-root /var/lib/second --exec-root /run/second --pidfile /run/second.pid \
		--containerd-namespace second --containerd-plugins-namespace second-plugins >>/var/log/dockerd.log 2>&1 </dev/null &
	wait_for second version >/dev/null
	docker save busybox | second load -q >/dev/null
}
end_second_host() {
	second ps -aq | xargs -r docker -H unix:///run/second.sock rm -fv >/dev/null
	second swarm leave -f >/dev/null 2>&1 || true
	kill "$(cat /run/second.pid)"
	while kill -0 "$(cat /run/second.pid 2>/dev/null)" 2>/dev/null; do sleep 0.1; done
	ip netns delete second
	rm -rf /var/lib/second
}

#: two hosts: `swarm join`, services on both, names, addresses and published ports across, `update`, `node update --availability drain`
two_hosts() {
	export -f second
	trap end_second_host EXIT
	second_host
	docker swarm init --advertise-addr 198.18.30.1 >/dev/null
	second swarm join --advertise-addr 198.18.30.2 --token "$(docker swarm join-token -q worker)" 198.18.30.1:2377
	docker node ls --format '{{.Status}} {{.Availability}} {{.ManagerStatus}}' | sort
	docker network create -d overlay --attachable --subnet 198.18.31.0/24 sea >/dev/null
	docker service create --quiet --no-resolve-image --name web --network sea --replicas 2 -p 8086:80 busybox \
		sh -c 'hostname >/index.html; exec httpd -f -h /' >/dev/null
	wait_for bash -c 'test "$(docker ps -q --filter name=web | wc -l) $(second ps -q --filter name=web | wc -l)" = "1 1"'
	here_web=$(docker ps -q --filter name=web) there_web=$(second ps -q --filter name=web)
	# Both answer whoever asks, wherever that is.
	both='for i in 1 2 3 4 5 6; do wget -q -O - http://web/ || true; done | sort -u | grep -c .'
	wait_for bash -c "docker exec $here_web sh -c '$both' | grep -x 2"
	wait_for bash -c "second exec $there_web sh -c '$both' | grep -x 2"
	second exec "$there_web" nslookup -type=a tasks.web 127.0.0.11 | grep -c '^Name:'
	# A port is published on each host, also where it is another's container that answers.
	for at in 198.18.30.1 198.18.30.2; do
		wait_for bash -c "for i in 1 2 3 4 5 6; do wget -q -O - http://$at:8086/; done | sort -u | grep -c . | grep -x 2"
	done
	docker service update --quiet --no-resolve-image --update-parallelism 1 --stop-grace-period 0s --env-add TURN=second web >/dev/null
	docker service inspect --format '{{.UpdateStatus.State}}' web
	docker node update --availability drain "$(second info --format '{{.Swarm.NodeID}}')" >/dev/null
	wait_for bash -c 'test "$(docker ps -q --filter name=web | wc -l) $(second ps -q | wc -l)" = "2 0"'
	docker node ls --format '{{.Status}} {{.Availability}}' | sort
	wait_for wget -q -O /dev/null http://198.18.30.2:8086/
	docker service rm web
	wait_for sh -c 'test -z "$(docker ps -q)"'
}

#: `stack deploy`, `stack ls`, `services`, `ps`, `rm`; secrets and configs
stacks() {
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	echo deep | docker secret create key - >/dev/null
	cat >stack.yaml <<-'EOF'
		version: "3.8"
		services:
		  web:
		    image: busybox
		    command: sh -c 'cat /run/secrets/key /note >/index.html; exec httpd -f -h /'
		    secrets: [ key ]
		    configs: [ { source: note, target: /note } ]
		    deploy: { replicas: 1 }
		  client:
		    image: busybox
		    command: sleep 1000
		secrets: { key: { external: true } }
		configs: { note: { file: ./note } }
	EOF
	echo written >note
	docker stack deploy --detach=true --resolve-image never -c stack.yaml fleet | sort
	wait_for sh -c 'docker stack services fleet --format "{{.Name}} {{.Replicas}}" | sort | tr "\n" " " | grep -x "fleet_client 1/1 fleet_web 1/1 "'
	client=$(docker ps -q --filter name=fleet_client)
	wait_for docker exec "$client" wget -q -O - http://web/
	docker stack ps fleet --format '{{.Name}} {{.DesiredState}}' | sort
	docker stack rm fleet | sort
	wait_for sh -c 'test -z "$(docker ps -q)"'
	docker secret rm key
}
