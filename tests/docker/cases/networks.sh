# Networks.

#: the default bridge: address, gateway, another container by address, the host
bridge() {
	docker run -d --name web busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' web)
	wait_for wget -q -O - "http://$address/"
	docker run --rm busybox sh -c "ip route | sed 's/src .*//'; wget -q -O - http://$address/; ping -c 1 -W 10 172.17.0.1 | grep -c 'bytes from'; cat /sys/class/net/eth0/mtu"
}

#: user-defined networks: names, `--network-alias`, reverse look-ups, names that nobody has
names() {
	docker network create --subnet 198.18.4.0/24 sea >/dev/null
	docker run -d --name web --network sea --network-alias www busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	docker run -d --name client --network sea busybox sleep 1000 >/dev/null
	docker exec client grep nameserver /etc/resolv.conf
	docker exec client wget -q -O - http://web/
	docker exec client wget -q -O - http://www/
	docker exec client nslookup -type=a web 127.0.0.11 | grep -A 1 '^Name:'
	docker exec client nslookup "$(address web sea)" | grep -o 'name = .*'
	docker exec client ping -c 1 -W 10 web | grep -c 'bytes from'
	says 1 'bad address' docker exec client wget -q -O - http://nobody/
	docker exec web wget -q -O - http://client/ 2>&1 | sed 's/([^)]*)//' || true
}

#: names after `rename`, `restart`, `network connect`; many questions at once
names_change() {
	docker network create --subnet 198.18.4.0/24 sea >/dev/null
	docker run -d --name web --network sea busybox sleep 1000 >/dev/null
	docker run -d --name client busybox sleep 1000 >/dev/null
	says 1 'bad address' docker exec client ping -c 1 -W 5 web
	docker network connect sea client
	wait_for docker exec client ping -c 1 -W 5 web >/dev/null
	docker rename web net
	wait_for docker exec client ping -c 1 -W 5 net >/dev/null
	docker restart -t 0 net
	docker exec client ping -c 1 -W 5 net | grep -c 'bytes from'
	docker exec client sh -c 'for n in $(seq 100); do nslookup -type=a net 127.0.0.11 >/tmp/$n 2>&1 & done; wait; grep -l "^Name:" /tmp/[0-9]* | wc -l'
	docker network disconnect sea client
	wait_for sh -c '! docker exec client ping -c 1 -W 1 net'
}

#: names over TCP, and by a container that listens at port 53 itself
names_tcp() {
	docker network create --subnet 198.18.4.0/24 sea >/dev/null
	docker run -d --name client --network sea --hostname client busybox sh -c 'nc -l -p 53 & sleep 1000' >/dev/null
	# A question for the address of "client", with the length before it as TCP has it.
	docker exec client sh -c '
		printf "\0\030\022\064\001\0\0\001\0\0\0\0\0\0\006client\0\0\001\0\001" >/question
		(cat /question; sleep 2) | timeout 10 nc 127.0.0.11 53 | od -An -tx1 -N8
		nslookup -type=a client 127.0.0.11 | grep -A 1 ^Name:; netstat -ltn | grep -c ":53 "'
}

#: names that dockerd asks other servers for, from inside the container's network; `--dns`
names_outside() {
	docker network create --subnet 198.18.10.0/24 --gateway 198.18.10.1 sea >/dev/null
	cat >server.py <<-'EOF'
		import socket
		server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
		server.bind(("198.18.10.1", 53))
		while True:
		    asked, who = server.recvfrom(512)
		    name = asked[12 : asked.index(0, 12) + 5]
		    # One answer: the name of the question, type A, 192.0.2.77.
		    answer = bytes.fromhex("81800001000100000000") + name
		    server.sendto(asked[:2] + answer + bytes.fromhex("c00c00010001000000050004c000024d"), who)
	EOF
	python3 server.py &
	local server=$!
	docker run -d --name client --network sea --dns 198.18.10.1 busybox sleep 1000 >/dev/null
	wait_for docker exec client nslookup -type=a lighthouse.example 127.0.0.11 | grep -A 1 ^Name:
	docker exec client sh -c 'for n in $(seq 50); do nslookup -type=a $n.example 127.0.0.11 >/tmp/$n 2>&1 & done; wait; grep -l "^Name:" /tmp/[0-9]* | wc -l'
	kill "$server"
}

#: `--network none`, `--network container:X`
shared() {
	docker run --rm --network none busybox ip -o link | awk '{ print $2 }' | sed 's/[@:].*//'
	docker run -d --name web busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	wait_for docker run --rm --network container:web busybox wget -q -O - http://127.0.0.1/
	docker run --rm --network container:web busybox hostname | sed "s/$(docker inspect --format '{{.Config.Hostname}}' web)/the same/"
}

#: names in a container that shares another's network
shared_names() {
	docker network create --subnet 198.18.4.0/24 sea >/dev/null
	docker run -d --name web --network sea busybox sleep 1000 >/dev/null
	docker run --rm --network container:web busybox nslookup -type=a web 127.0.0.11 | grep -A 1 ^Name:
}

#: names in a container that shares another's processes or memory (`--pid container:X`) and has a network of its own
joined_names() {
	docker network create --subnet 198.18.4.0/24 sea >/dev/null
	docker run -d --name web --network sea busybox sleep 1000 >/dev/null
	docker run -d --name first --ipc shareable busybox sleep 1000 >/dev/null
	for namespace in pid ipc; do
		docker run --rm --network sea --$namespace container:first busybox nslookup -type=a web 127.0.0.11 | grep -A 1 ^Name:
	done
}

#: `--network host`: the container's ports are the host's, TCP and UDP, until it lets go
host() {
	docker run -d --name web --network host busybox sh -c 'echo tide >/index.html; httpd -f -p 8097 -h /' >/dev/null
	wait_for wget -q -O - http://127.0.0.1:8097/
	wget -q -O - http://172.17.0.1:8097/
	says 1 'in use' python3 -c 'import socket; socket.create_server(("127.0.0.1", 8097))'
	# The host's socat, which the image does not have.
	docker run -d --name echo --network host -v /usr:/opt:ro busybox sh -c \
		'exec /opt/lib*/ld-linux-*.so.* --library-path $(echo /opt/lib/*-linux-gnu) /opt/bin/socat UDP-RECVFROM:8099,fork EXEC:/bin/cat' >/dev/null
	wait_for sh -c 'echo ebb | socat -t 2 - UDP:127.0.0.1:8099 | grep ebb'
	docker kill web echo
	wait_for python3 -c 'import socket; socket.create_server(("0.0.0.0", 8097)); socket.socket(type=socket.SOCK_DGRAM).bind(("0.0.0.0", 8099))'
	docker start web
	wait_for wget -q -O - http://127.0.0.1:8097/
	docker kill web
}

#: `--network host`: services at 127.0.0.1, of the host and of another such container; `--network container:X` with it
host_services() {
	socat TCP-LISTEN:8096,bind=127.0.0.1,reuseaddr,fork SYSTEM:'echo ebb' &
	service=$!
	docker run -d --name web --network host busybox sh -c 'echo tide >/index.html; httpd -f -p 127.0.0.1:8097 -h /' >/dev/null
	wait_for wget -q -O - http://127.0.0.1:8097/
	docker run --rm --network host busybox sh -c \
		'nc 127.0.0.1 8096 </dev/null; nc localhost 8096 </dev/null; nc 172.17.0.1 8096 </dev/null 2>&1; wget -q -O - http://127.0.0.1:8097/'
	docker exec web nc 127.0.0.1 8096 </dev/null
	docker run --rm --network container:web busybox sh -c 'wget -q -O - http://127.0.0.1:8097/; nc 127.0.0.1 8096 </dev/null'
	says 1 'refused' docker run --rm --network host busybox wget -q -O - http://127.0.0.1:8095/
	docker kill web
	kill "$service"
}

#: `create` with subnet, gateway, driver; `--ip`, `--mac-address`; `ls`, `inspect`, `rm`, `prune`
addresses() {
	docker network create --driver bridge --subnet 198.18.5.0/24 --gateway 198.18.5.254 sea >/dev/null
	docker run --rm --network sea --ip 198.18.5.7 --mac-address 02:00:5e:10:00:07 busybox sh -c \
		'ip -4 addr show eth0 | grep -o "inet [^ ]*"; cat /sys/class/net/eth0/address; ip route'
	docker network ls --filter name=sea --format '{{.Name}} {{.Driver}}'
	docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}' sea
	docker network prune -f
}

#: `network connect` and `disconnect` on a running container, two networks, an alias
connect() {
	docker network create --subnet 198.18.6.0/24 first >/dev/null
	docker network create --subnet 198.18.7.0/24 second >/dev/null
	docker run -d --name box --network first busybox sleep 1000 >/dev/null
	docker run -d --name web --network second busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	docker network connect --ip 198.18.7.77 --alias buoy second box
	wait_for docker exec box wget -q -O - http://web/
	docker exec box ip -4 addr show eth1 | grep -o 'inet [^ ]*'
	docker exec web ping -c 1 -W 10 buoy | grep -c 'bytes from'
	docker network disconnect second box
	wait_for sh -c '! docker exec box ip link show eth1'
	docker exec box ip -o link | awk '{ print $2 }' | sed 's/[@:].*//' | sort
	docker network inspect --format '{{len .Containers}}' second
}

#: `-p`: a port, an address, a range, UDP, two ports to one; `-P`
ports() {
	docker run -d --name web -p 8081:80 -p 127.0.0.1:8082:80 -p 8083-8084:83-84 -p 8085:53/udp localhost/hull/services python3 -c '
import http.server, socket, threading
for port in 80, 84:
    server = http.server.HTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("", 53))
while True:
    said, who = echo.recvfrom(2000)
    echo.sendto(said, who)' >/dev/null
	for port in 8081 8082 8084; do wait_for wget -q -O - "http://127.0.0.1:$port/etc/hostname" >/dev/null; done
	wait_for sh -c 'echo datagram | socat -T 2 - UDP:127.0.0.1:8085 | grep datagram'
	docker port web | sort
	docker rm -f web
	says 1 '' wget -q -T 2 -O - http://127.0.0.1:8081/
	docker run -d --name any --expose 80 -P busybox sh -c 'echo any >/index.html; httpd -f -h /' >/dev/null
	wait_for wget -q -O - "http://$(docker port any 80/tcp | head -n 1)/"
}

#: IPv6
ipv6() {
	docker network create --ipv6 --subnet 198.18.8.0/24 --subnet fd00:5ea::/64 sea >/dev/null
	docker run -d --name web --network sea busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	docker run --rm --network sea busybox sh -c 'ip -6 addr show eth0 | grep -o "inet6 fd00[^ ]*"; ip -6 route | grep default; nslookup -type=aaaa web 127.0.0.11 | grep -A 1 ^Name:'
	docker run --rm --network sea busybox wget -q -O - "http://[$(docker inspect --format '{{.NetworkSettings.Networks.sea.GlobalIPv6Address}}' web)]/"
}

#: macvlan, ipvlan
macvlan() {
	ip link add lan0 type dummy
	ip link set lan0 up
	docker network create --driver macvlan --subnet 198.18.9.0/24 -o parent=lan0 lan >/dev/null
	docker run -d --name one --network lan --ip 198.18.9.2 busybox sleep 1000 >/dev/null
	docker run --rm --network lan busybox ping -c 1 -W 10 198.18.9.2 | grep -c 'bytes from'
	docker rm -f one
	docker network rm lan
	docker network create --driver ipvlan --subnet 198.18.9.0/24 -o parent=lan0 lan >/dev/null
	docker run -d --name two --network lan --ip 198.18.9.3 busybox sleep 1000 >/dev/null
	docker run --rm --network lan busybox ping -c 1 -W 10 198.18.9.3 | grep -c 'bytes from'
	docker rm -f two
	docker network rm lan
	ip link del lan0
}

#: `--link`
link() {
	docker run -d --name web busybox sh -c 'echo tide >/index.html; httpd -f -h /' >/dev/null
	wait_for docker run --rm --link web:www busybox wget -q -O - http://www/
}
